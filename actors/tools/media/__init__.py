"""Tools for pictures, sounds and languages, entries of the group `callboard.tools`: see docs/tools-media.md."""
