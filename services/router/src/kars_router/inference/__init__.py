"""Chat completions as a subject: the request, the answer, the event stream. No HTTP server, no policy."""
