"""Objects in pictures and videos: detection and segmentation."""
