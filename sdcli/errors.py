"""What can go wrong by the user's hand, and the exit code that each kind ends with."""

EXIT_MISTAKE = 1
EXIT_OUT_OF_MEMORY = 3
EXIT_NOT_A_NUMBER = 4
EXIT_SOME_FAILED = 5
EXIT_DIFFERS = 6  # a picture that was made again is another one


class SdcliError(Exception):
    """One sentence on what is wrong, and optionally one on what to do next.

    Args:
        message: what was wrong with which value.
        hint: what is allowed, or what to try.
        exit_code: how the process ends when nobody catches it.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_MISTAKE):
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code
