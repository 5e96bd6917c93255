"""``python -m lit_sphere`` is the command ``lit-sphere``."""

from lit_sphere.cli import main

main()
