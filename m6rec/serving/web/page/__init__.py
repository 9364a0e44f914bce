"""A page to look at what a server does: mounted in the app, offline. Needs the extra `page`."""
