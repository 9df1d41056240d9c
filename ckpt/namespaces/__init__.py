# SPDX-License-Identifier: Apache-2.0
"""Namespaces, one file per kind."""
