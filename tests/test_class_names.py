"""Classes by the names that a file has for them, in every format, whatever numbers it gives them."""

from __future__ import annotations


