"""Workers: stateful objects outside the event loop, driven by requests. One protocol, several backends.

Nothing is imported here: the command starts `fork_server` before it imports anything large.
"""
