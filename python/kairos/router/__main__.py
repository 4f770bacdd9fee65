"""`python -m kairos.router`"""

import sys

from kairos.router.cli import main

if __name__ == "__main__":
    sys.exit(main())
