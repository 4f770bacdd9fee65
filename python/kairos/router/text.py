"""Text that others wrote, made fit for a log line, a header or a label."""


def clean(value: str, limit: int = 200) -> str:
    """`value` in at most about `limit` printable characters, the others escaped.

    Lone surrogates are what undecodable bytes of a header become, and no encoder takes them;
    line separators beyond ASCII end a line for some readers.
    """
    if len(value) > limit:
        value = f"{value[:limit]}..."
    if value.isascii() and value.isprintable():
        return value
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
