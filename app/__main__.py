"""`python -m app` is `datastorage`."""

import sys

from app.cli import main

sys.exit(main())
