"""Bytes by URL, on disks and in object stores."""
