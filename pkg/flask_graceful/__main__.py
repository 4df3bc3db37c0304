"""`python -m flask_graceful`.

Rules: a first word that is exactly the name of a command is that command, and all else is for the
server, which is imported only then. A module of such a name is served as `status:app`.
"""

import sys

from . import commands

if sys.argv[1:2] and sys.argv[1] in commands.NAMES:
    commands.main(sys.argv[1:])

from .cli import main  # the commands do not need it

main()
