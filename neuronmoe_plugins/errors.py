"""The one exception that ends a command with a single clear line."""


class UserError(ValueError):
    """Bad input from the user: names the file, key or value and what to do.

    The command line prints the message on one line and exits with code 2. It is a `ValueError`, so that programs that
    call the library directly need not know it.
    """


def one_line(error: BaseException | str) -> str:
    """A message without its line breaks, as other libraries' messages may have them."""
    return " ".join(str(error).split())
