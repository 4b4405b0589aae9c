"""What a submission may hold. Client and service check the same numbers."""

MAX_PHOTOS = 50
MAX_SUBJECTS = 8
MAX_PHOTO_BYTES = 25 * 2**20
MAX_PHOTO_PIXELS = 50_000_000  # a phone's largest mode; a 13,000 px square bomb has 169,000,000
MIN_PHOTO_SIDE_PX = 32
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow's JPEG reader also takes MPO, which phones write under .jpg
MAX_STEPS = 20_000
MAX_CLASS_IMAGES = 2_000
MAX_OWN_CLASS_IMAGES = 500  # a user's own, of all subjects together: their names must fit one request
MAX_CLASS_IMAGES_PER_CALL = 8  # checked within one request
MAX_TRAIN_BATCH_SIZE = 64
MAX_RESOLUTION_PX = 2_048
MAX_TEXT_CHARS = 100
MAX_PROMPT_CHARS = 1_000
MAX_PROMPTS_PER_CALL = 16
MAX_IMAGES_PER_CALL = 32
MAX_PIXELS_PER_CALL = 32 * 1024 * 1024  # of all its pictures together, the sources of edits included
MAX_SAMPLE_PROMPTS = 8
MAX_EDIT_WORDS = 16  # of one Prompt-to-Prompt edit
MAX_INIT_IMAGE_BYTES = 8 * 2**20  # the picture that img2img starts from
MAX_SCORE_PROMPTS = 200
MAX_SCORE_STEPS = 50
MAX_CELLS = 1_000  # of one group
MAX_GROUP_BYTES = 16 * 2**20  # of its request: 1,000 jobs of 16 KiB
MAX_BULK_PICTURES = 100_000
MAX_BULK_BYTES = 16 * 2**20  # of a generation's request: 100,000 prompts of 160 bytes
