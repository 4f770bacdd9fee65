"""The one exception type for input that a user can correct."""


class InputError(ValueError):
    """Bad input: a flag, a header, a file. The message names place, value and allowed values.

    Entry points print the message as one line and exit with a code other than 0; servers
    answer 400. Anything else that is raised is a bug in Kairos.
    """
