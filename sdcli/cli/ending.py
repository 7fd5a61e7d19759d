"""How a command can be made to end from outside. Imports nothing."""


class Signalled(BaseException):
    """The user or the system asks the program to end. No `except Exception` can stop it.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number
