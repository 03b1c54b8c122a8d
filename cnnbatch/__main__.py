"""What `cnnbatch` and `python -m cnnbatch` start: signals are taken over before the large imports."""

from cnnbatch.terminal import interrupts


def main() -> None:
    """Run the command line."""
    interrupts.install()
    from cnnbatch.cli import app

    app.main()


if __name__ == "__main__":
    main()
