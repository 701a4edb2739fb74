"""What a file of texts is by its first bytes: another kind than its name says, or text that is not UTF-8."""

from __future__ import annotations

from pathlib import Path

from neuronmoe_plugins.languages import base_code

HEAD = 1 << 16
# What a file begins with -> what it is, and the ending that names it, if it can be read.
MAGIC = {
    b"\x1f\x8b": ("gzip", ".gz"),
    b"\x28\xb5\x2f\xfd": ("zstd", ".zst"),
    b"PAR1": ("Parquet", ".parquet"),
    b"PK\x03\x04": ("a zip archive", None),
    b"BZh": ("bzip2", None),
    b"\xfd7zXZ\0": ("xz", None),
    b"%PDF-": ("a PDF", None),
}
MARKS = {b"\xff\xfe\0\0": "UTF-32LE", b"\0\0\xfe\xff": "UTF-32BE", b"\xff\xfe": "UTF-16LE", b"\xfe\xff": "UTF-16BE"}
# Of ISO, then of Windows, where they are of one byte -> languages.
OLDER = {
    ("ISO-8859-7", "WINDOWS-1253"): "el",
    ("ISO-8859-9", "WINDOWS-1254"): "tr az",
    ("ISO-8859-2", "WINDOWS-1250"): "hu pl cs sk sl hr bs ro sq",
    ("WINDOWS-1251", "WINDOWS-1251"): "ru uk be bg mk sr kk ky mn tg",
    ("ISO-8859-6", "WINDOWS-1256"): "ar fa ur",
    ("ISO-8859-8", "WINDOWS-1255"): "he yi",
    ("ISO-8859-13", "WINDOWS-1257"): "et lt lv",
    ("TIS-620", "CP874"): "th",
    ("WINDOWS-1258", "WINDOWS-1258"): "vi",
    ("GB18030", "GB18030"): "zh",
    ("SHIFT_JIS", "SHIFT_JIS"): "ja",
    ("EUC-KR", "EUC-KR"): "ko",
}
WESTERN = ("ISO-8859-1", "WINDOWS-1252")


def wrong_content(path: Path, ending: str) -> str | None:
    """Why a file cannot be what its name says, and what to do; None if nothing in its first bytes speaks against it.

    Args:
        path: A file of lines, perhaps compressed.
        ending: Its name's, as in `.jsonl.gz`.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(HEAD)
    except OSError:
        return None  # which its reader says
    compression = next((suffix for suffix in (".gz", ".zst") if ending.endswith(suffix)), None)
    problem = _other_kind(raw, ending, compression)
    if problem is not None or compression is None:
        return problem or _not_lines(raw, ending)
    unpacked = beginning(path)
    return _other_kind(unpacked, ending, None) or _not_lines(unpacked, ending)


def beginning(path: Path) -> bytes:
    """The first bytes of a file's contents, unpacked; none where they cannot be read."""
    import pyarrow as pa

    name = path.name.lower()
    compression = "gzip" if name.endswith(".gz") else "zstd" if name.endswith(".zst") else None
    try:
        with pa.input_stream(str(path), compression=compression) as stream:
            return bytes(stream.read(HEAD))
    except (OSError, ValueError):
        return b""


def conversion(head: bytes, language: str = "en") -> str:
    """How to convert contents that begin so and are not UTF-8."""
    wide = _wide_encoding(head)
    return older_encoding(head, language) if wide is None else f"convert it: `iconv -f {wide} -t UTF-8`"


def older_encoding(head: bytes, language: str) -> str:
    """How to convert a file that begins so and is not UTF-8, by what is usual for its language."""
    code = base_code(language)
    of_iso, of_windows = next((names for names, codes in OLDER.items() if code in codes.split()), WESTERN)
    # What ISO's encodings have control characters for.
    name = of_windows if any(0x80 <= byte < 0xA0 for byte in head) else of_iso
    return f"if all of it is in an older encoding, convert it, as by `iconv -f {name} -t UTF-8`"


def _other_kind(head: bytes, ending: str, compression: str | None) -> str | None:
    kind, own = next((told for magic, told in MAGIC.items() if head.startswith(magic)), (None, None))
    if kind is None or (own is not None and own == compression):
        return None
    remedy = "export its text" if kind == "a PDF" else "unpack it"
    if own == ".parquet" or (own == ".gz" and ending.count(".") == 1):
        remedy = f"let its name end in {own if own == '.parquet' else ending + own}"
    return f"is {kind} by its first bytes, not {'text' if ending.count('.') > 1 else ending}; {remedy}"


def _not_lines(head: bytes, ending: str) -> str | None:
    """What is wrong with contents that shall be lines of UTF-8, of JSON objects where the name says so."""
    wide = _wide_encoding(head)
    if wide is not None:
        return f"is {wide} by its first bytes, not UTF-8; {conversion(head)}"
    if b"\n" not in head and head.count(b"\r") > 1:
        return r"has lines that end in CR alone; convert it: `tr '\r' '\n'`"
    if ending.startswith(".jsonl") and head[: HEAD // 2].translate(None, b"\xef\xbb\xbf \t\r\n").startswith(b"[{"):
        return "is one JSON array, not an object a line; convert it: `jq -c '.[]'`"
    return None


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by the mark or else by blanks and line ends of two or four bytes."""
    marked = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
    if marked is not None or b"\0" not in head:
        return marked
    blanks = head.count(b" ") + head.count(b"\n")
    for name in MARKS.values():
        text = head[: len(head) // 4 * 4].decode(name, errors="ignore")
        if 2 * (text.count(" ") + text.count("\n")) > blanks:
            return name
    return None
