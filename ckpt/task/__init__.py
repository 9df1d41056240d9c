# SPDX-License-Identifier: Apache-2.0
"""What a task is besides memory and files: registers, ids, signals, timers, limits."""
