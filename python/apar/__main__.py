"""`python -m apar`"""

from .cli import main

raise SystemExit(main())
