"""``python -m lit_sphere`` is the command ``lit-sphere``."""

from lit_sphere.cli import main

if __name__ == "__main__":  # a child of multiprocessing may import it
    main()
