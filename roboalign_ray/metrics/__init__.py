"""Metrics of frames and videos: PSNR, SSIM, LPIPS, FVD. They depend on no model of this project."""
