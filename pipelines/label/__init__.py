"""Jobs that score videos: teacher labels, the bench, single videos."""
