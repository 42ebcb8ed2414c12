"""report.html of a study: `story` reads its folder, `curves`, `maps` and `importance` draw, `page` puts it together."""
