"""`neuronmoe vocabulary`: a base model with a larger vocabulary, which cuts the text to keep exactly as before."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import new_directory, write_json, writing
from neuronmoe_plugins.models import NEW_TOKENS, new_tokens, require_model
from neuronmoe_plugins.neurons.loading import load_model, load_tokenizer
from neuronmoe_plugins.progress import Progress, without_transformers_bars
from neuronmoe_plugins.vocabulary.measures import Measure, Texts, other_cuts
from neuronmoe_plugins.vocabulary.merges import LEAST, Merges, Word, learn_merges
from neuronmoe_plugins.vocabulary.options import KEPT, LEARNT, MEASURED, VocabularyOptions
from neuronmoe_plugins.vocabulary.tokenizer import ByteLevelTokenizer, KeptText

REPORT = "neuronmoe_vocabulary.json"


@dataclass(frozen=True)
class Extended:
    """What was written.

    Attributes:
        measures: Every corpus before and after.
        record: What the report says.
    """

    measures: Sequence[Measure]
    record: dict[str, Any]

    def summary(self) -> str:
        """What was learnt, in a line."""
        of = self.record
        line = f"{of['tokens']:,} new tokens from {of['first_token']} on, {of['rows'] - of['rows_before']:,} rows"
        line += f" and {of['added_bytes'] / 1e6:,.1f} MB more"
        if of["left_out"]:
            line += f"; {of['left_out']:,} merges were left out, since they would cut the text to keep otherwise"
        return line


def extend_vocabulary(options: VocabularyOptions, progress: bool = False) -> Extended:
    """Write a base model whose tokenizer has learnt merges on new text, and cuts the text to keep as before.

    The folder `options.output` gets what `save_pretrained` writes of the model and the tokenizer, and the report.

    Raises:
        UserError: for bad input, too little text, or a text that would be cut otherwise; nothing is written then.
    """
    require_model("--model", options.model)
    field = options.text_field or "text"
    texts = {use: [Texts(spec, field) for spec in specs] for use, specs in options.texts().items()}
    before = load_tokenizer(options.model)
    tokenizer = ByteLevelTokenizer(before, options.model)
    also = [_old_token(token, tokenizer, options.model) for token in options.train_also]
    model: Any = load_model(options.model, "auto", "cpu")
    rows = _require_rows(model, tokenizer, options.model)
    with Progress(Console(stderr=True), progress) as bars:
        merges = _learn(options.tokens, tokenizer, texts, bars)
        from neuronmoe_plugins.vocabulary.rows import added_bytes, extend_rows, modules_with_rows

        seed = 42 if options.seed is None else options.seed
        extend_rows(model, merges, options.initialise, seed)
        _tell_of_new_tokens(model.config, tokenizer, merges, modules_with_rows(model), also)
        with writing(f"--output {options.output}"), new_directory(options.output) as folder:
            with without_transformers_bars():
                model.save_pretrained(folder)
            _save_tokenizer(before, tokenizer.with_merges(merges), folder)
            # As programs will load it.
            after = load_tokenizer(str(folder), "--output")
            _require_tokens(tokenizer, after, merges)
            measures = [Measure.of(each, LEARNT, before, after) for each in texts[LEARNT]]
            for use in (KEPT, MEASURED):
                measures += [_compared(each, use, before, after, bars) for each in texts[use]]
            record = {
                "neuronmoe_plugins": version("neuronmoe-plugins"),
                "model": options.model,
                "tokens": len(merges.tokens),
                "first_token": merges.first,
                "merges": len(merges.pairs),
                "left_out": merges.left_out,
                "rows_before": rows,
                "rows": model.get_input_embeddings().weight.shape[0],
                "added_bytes": added_bytes(model, rows),
                "initialise": options.initialise,
                "seed": seed if options.initialise == "random" else None,
                "train_also": list(options.train_also),
                "corpora": [each.record() for each in measures],
                "learnt": _learnt_tokens(merges, after),
            }
            write_json(folder / REPORT, record)
    return Extended(measures, record)


def _old_token(token: str, tokenizer: ByteLevelTokenizer, name: str) -> int:
    """The id of a token that the model has; raises `UserError` for one that it has not."""
    if not tokenizer.knows(token):
        raise UserError(f"--train-also {token}: the tokenizer of {name} has no such token; name one of its own")
    return tokenizer.ids[token]


def _tell_of_new_tokens(
    config: Any, tokenizer: ByteLevelTokenizer, merges: Merges, modules: Sequence[str], also: Sequence[int]
) -> None:
    """Those of an earlier extension stay new ones, since only adapters have trained their rows."""
    told = getattr(config, NEW_TOKENS, None) or {"first": merges.first}
    first = told["first"]
    earlier = [tokenizer.names[token_id] for token_id in sorted(tokenizer.names) if token_id >= first]
    older = [token_id for token_id in {*also, *told.get("also", ())} if token_id < first]
    setattr(config, NEW_TOKENS, new_tokens(first, [*earlier, *merges.tokens], modules, older))


def _require_rows(model: Any, tokenizer: ByteLevelTokenizer, name: str) -> int:
    """The rows of the embedding, which all tokens must have."""
    if getattr(model, "is_quantized", False):
        raise UserError(f"--model {name} is quantised, and its rows cannot be extended: take it unquantised")
    rows = int(model.get_input_embeddings().weight.shape[0])
    if rows < tokenizer.first:
        raise UserError(
            f"--model {name}: its tokenizer has tokens up to {tokenizer.first - 1}, but its embedding {rows} rows; put "
            "the model's own tokenizer into its folder"
        )
    return rows


def _learn(wanted: int, tokenizer: ByteLevelTokenizer, texts: Mapping[str, Sequence[Texts]], bars: Progress) -> Merges:
    kept = KeptText(tokenizer)
    for each in texts[KEPT]:
        for words in _words(tokenizer, each, bars):
            kept.add(words)
    counts: Counter[Word] = Counter()
    for each in texts[LEARNT]:
        for words in _words(tokenizer, each, bars):
            counts.update(words)
    task = bars.add_task("learning merges", total=wanted)
    merges = learn_merges(
        {word: count for word, count in counts.items() if len(word) > 1},
        tokenizer.names,
        tokenizer.first,
        wanted,
        kept.may_merge,
        lambda count: bars.advance(task, count),
    )
    if len(merges.tokens) < wanted:
        held = f" ({merges.left_out:,} merges would cut the text to keep otherwise)" if merges.left_out else ""
        raise UserError(
            f"--tokens {wanted}: the text to learn from gives only {len(merges.tokens):,} that it has {LEAST} "
            f"times or more{held}; add text, or ask for fewer"
        )
    return merges


def _words(tokenizer: ByteLevelTokenizer, texts: Texts, bars: Progress) -> Iterator[list[Word]]:
    task = bars.add_task(f"reading {texts.spec.language}", total=None)
    for part in texts.parts():
        yield list(tokenizer.words([text.text for text in part]))
        bars.advance(task, len(part))


def _save_tokenizer(loaded: Any, backend: Any, folder: Path) -> None:
    """Save a tokenizer of transformers with another one of `tokenizers` in it; the loaded one stays as it is."""
    extended = copy.deepcopy(loaded)
    extended._tokenizer = backend
    extended.save_pretrained(folder)


def _require_tokens(tokenizer: ByteLevelTokenizer, after: Any, merges: Merges) -> None:
    """Every old and new token has its id also in the tokenizer that was loaded again."""
    ids = after.get_vocab()
    new = {merges.first + place: name for place, name in enumerate(merges.tokens)}
    for token_id, name in (tokenizer.names | new).items():
        if ids.get(name) != token_id:
            raise UserError(
                f"the token {name!r} would get the id {ids.get(name)} instead of {token_id} when the tokenizer is "
                "loaded; this kind of tokenizer cannot be extended"
            )


def _compared(corpus: Texts, use: str, before: Any, after: Any, bars: Progress) -> Measure:
    """Compare all texts of a corpus, token by token; those of a text to keep must be the same."""
    texts, others = Texts(corpus.spec, corpus.field), 0
    task = bars.add_task(f"comparing {texts.spec.language}", total=None)
    for part in texts.parts():
        found = other_cuts(part, before, after)
        if found and use == KEPT:
            raise UserError(f"{found[0].name} is text to keep, and the new tokenizer would cut it otherwise")
        others += len(found)
        bars.advance(task, len(part))
    return Measure.of(texts, use, before, after, others)


def _learnt_tokens(merges: Merges, after: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": merges.first + place,
            "token": name,
            "text": after.decode([merges.first + place], clean_up_tokenization_spaces=False),
            "count": merges.counts[place],
        }
        for place, name in enumerate(merges.tokens)
    ]
