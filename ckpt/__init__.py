# SPDX-License-Identifier: Apache-2.0
"""Checkpoint/restore of Linux processes with a target that hardly notices."""
