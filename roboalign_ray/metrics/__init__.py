"""Metrics of frames and videos: PSNR, SSIM, LPIPS, FVD. They know no model of this project."""
