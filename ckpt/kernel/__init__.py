# SPDX-License-Identifier: Apache-2.0
"""What the kernel offers: one module per interface. Knows nothing of images."""
