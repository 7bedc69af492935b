"""Jobs that score videos: teacher labels, the bench, and single videos."""
