"""`python -m app` runs the command `datastorage`."""

import sys

from app.cli import main

sys.exit(main())
