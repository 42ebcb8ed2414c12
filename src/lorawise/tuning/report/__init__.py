"""report.html of a study: `story` reads its folder, a module a kind of figure draws, `page` puts it together."""
