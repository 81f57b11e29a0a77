/* AES-256-GCM over many frames in one call, split over threads. */

#ifndef TAPESEAL_FRAMES_H
#define TAPESEAL_FRAMES_H

#include <stddef.h>
#include <stdint.h>

#include <openssl/evp.h>

enum {
    KEY_SIZE = 32,
    NONCE_SIZE = 12,
    TAG_SIZE = 16,
    FRAME_HEADER_SIZE = 24,
};

enum {
    OK = 0,
    ERR_TAG = -1,
    ERR_CRYPTO = -2,
};

/* A run of frames of one segment, one after the other: header, ciphertext, tag. */
typedef struct {
    unsigned char *plain;      /* the first frame's plaintext */
    size_t plain_step;         /* bytes from one frame's plaintext to the next one's */
    unsigned char *sealed;     /* the first frame's header */
    uint64_t count;            /* items in the whole run */
    uint64_t first;            /* number of the first item */
    uint64_t index;            /* the first frame's number in its segment: its nonce */
    uint32_t frame_items;      /* items in each frame but the last */
    uint32_t item_size;        /* bytes */
    int final;                 /* the last frame is of the final type */
} frame_run;

/* Frames in the run; a final run of no items has one empty frame. */
uint64_t frame_run_frames(const frame_run *run);

/* One message with `key`, a context that holds a key and is not changed. `sealed` is ciphertext, then tag. */
int gcm_seal(const EVP_CIPHER_CTX *key, const unsigned char *nonce, const unsigned char *aad, size_t aad_size,
             const unsigned char *plain, size_t size, unsigned char *sealed);
int gcm_open(const EVP_CIPHER_CTX *key, const unsigned char *nonce, const unsigned char *aad, size_t aad_size,
             const unsigned char *sealed, size_t size, unsigned char *plain);

/* The same with a context of this thread's own, which is left with the last nonce. EVP counts bytes in int: every
   size is below INT_MAX. gcm_open_with() wipes `out` where the tag is wrong. */
int gcm_seal_with(EVP_CIPHER_CTX *ctx, const unsigned char *nonce, const unsigned char *aad, size_t aad_size,
                  const unsigned char *plain, size_t size, unsigned char *out, unsigned char *tag);
int gcm_open_with(EVP_CIPHER_CTX *ctx, const unsigned char *nonce, const unsigned char *aad, size_t aad_size,
                  const unsigned char *sealed, size_t size, const unsigned char *tag, unsigned char *out);

/* Calls `work` in this thread and in up to threads - 1 others, and waits for all. */
void run_in_threads(void *(*work)(void *), void *argument, unsigned threads);

/* plain -> sealed, headers and tags included. `plain` may lie in place (its bytes are then the ciphertext's). */
int frames_seal(const EVP_CIPHER_CTX *key, const frame_run *run, unsigned threads);

/* sealed -> plain. ERR_TAG: `*bad` is the number in this run of the first frame whose header or tag is not the
   expected one; the plaintext of each such frame is wiped. */
int frames_open(const EVP_CIPHER_CTX *key, const frame_run *run, unsigned threads, uint64_t *bad);

#endif
