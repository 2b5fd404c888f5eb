"""`python -m apar`"""

from apar.cli import main

raise SystemExit(main())
