"""Errors of what agents remember.

CallboardError
└── MemoryFailed           memory
    ├── NoteTooLarge       memory.too_large     a text that is more than a note
    ├── MemoryDamaged      memory.damaged       the file is no database of ours, or broken
    ├── MemoryFull         memory.full          no room on the disk; nothing was kept
    └── ConversationFull   memory.conversation  what must stay of a conversation is more than its budget
"""

from __future__ import annotations

from ....runtime.errors import CallboardError


class MemoryFailed(CallboardError):
    code = "memory"


class NoteTooLarge(MemoryFailed):
    code = "memory.too_large"
    default_hint = "keep a summary, or put the text into a file and remember where it is"


class MemoryDamaged(MemoryFailed):
    code = "memory.damaged"
    default_hint = "move the file away and start the actor again: it begins a new one"


class MemoryFull(MemoryFailed):
    code = "memory.full"
    default_hint = "make room on the disk, then try again"


class ConversationFull(MemoryFailed):
    code = "memory.conversation"
    default_hint = "give a larger budget, or a shorter task"
