# SPDX-License-Identifier: Apache-2.0
"""`python -m ckpt`."""

import sys

from ckpt.cli import main

sys.exit(main())
