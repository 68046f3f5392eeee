"""The studio: one queue of jobs behind a page and two HTTP interfaces that other programs use (OpenAI Images, the web UI's sdapi).

    guard ─► api/, sdapi/, web/ ─► job queue ─► worker ─► daguerre.stream
                                      │            │
                                      └── store ◄──┴──► event log ─► server-sent events

A job is a `Request` as JSON. The store keeps jobs, images and settings in SQLite next to the image files.
"""
