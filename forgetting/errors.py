class UserError(Exception):
    """Something the user gave is wrong: the message says what was found, what was expected and what to do.

    The command line prints the message alone and exits with status 2; a library caller catches it like any exception.
    """
