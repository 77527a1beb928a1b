"""`python -m packager` is `lorapack`."""

from packager.cli import main

if __name__ == "__main__":
    main()
