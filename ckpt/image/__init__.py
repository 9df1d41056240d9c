# SPDX-License-Identifier: Apache-2.0
"""What is on disk: CRIU's image format, written and read. Images are untrusted input."""
