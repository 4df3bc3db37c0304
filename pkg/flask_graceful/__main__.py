"""`python -m flask_graceful`."""

from .cli import main

main()
