# SPDX-License-Identifier: Apache-2.0
"""Mappings and their pages: out to the image, and back in."""
