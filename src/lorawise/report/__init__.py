"""What people see of a run: events, and their readers: console, files, trackers, the page."""
