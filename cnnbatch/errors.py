"""The three ways a run can end early; each says what was expected, what came and what to do."""


class UserError(Exception):
    """A mistake of the person who runs the job (exit status 2); its text is all they see."""


class EnvironmentFault(Exception):
    """A fault of the machine, the network or the storage, never of one image (exit status 3).

    Whatever was under way stays unwritten; the same command continues once ``mend`` was done.
    """

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what, mend)
        self.what = what
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.what}\n  what to do: {self.mend}"


class OutputHeld(Exception):
    """Another run holds this output (exit status 4)."""
