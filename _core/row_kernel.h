/* What a kernel of rows.c is: XOR and GHASH over rows, and AES too where it is faster at it than libcrypto. */

#ifndef TAPESEAL_ROW_KERNEL_H
#define TAPESEAL_ROW_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#include "frames.h"

enum {
    BLOCK = 16,
    /* A row of more blocks than this, associated data and the block of lengths counted, is libcrypto's. */
    MAX_POWER = 128,
    /* A vector of four blocks may be loaded from the last power. */
    POWER_PADDING = 3,
    ROUND_KEYS = 15,
    /* Bytes that kernels may read and write behind the keystream of a slice. */
    STREAM_PADDING = 256,
};

/* H is the cipher of the zero block; GHASH multiplies by its powers (SP 800-38D, 6.4). */
typedef struct {
    /* H^MAX_POWER first, H last, each in the kernel's own form; then zeros. */
    _Alignas(64) unsigned char powers[(MAX_POWER + POWER_PADDING) * BLOCK];
    /* AES-256's, of a kernel that encrypts (FIPS 197, 5.2). */
    unsigned char round_keys[ROUND_KEYS * BLOCK];
} kernel_key;

/* One row of a slice. */
typedef struct {
    unsigned char *plain;
    unsigned char *sealed;         /* nonce, ciphertext, tag */
    const unsigned char *aad;
    unsigned char *stream;         /* counter blocks, then keystream: the block that masks the tag comes first */
    size_t size;                   /* bytes of plaintext */
    size_t aad_size;               /* bytes at `aad`, of this row alone */
    uint64_t lengths[2];           /* bits of plaintext, and of associated data in all */
    int valid;                     /* what opening found */
} row;

typedef struct {
    const char *name;
    size_t max_size;               /* bytes of plaintext above which libcrypto's own GCM is faster, measured */
    int (*supported)(void);
    void (*init)(kernel_key *key, const unsigned char secret[KEY_SIZE], const unsigned char h[BLOCK]);
    /* GHASH state after associated data that comes before all rows of a batch. */
    void (*absorb)(const kernel_key *key, const unsigned char *aad, size_t size, unsigned char start[BLOCK]);
    /* From the nonce in each sealed row, its counter blocks: 1 for the tag, 2 and so on. */
    void (*counters)(const row *rows, size_t count);
    /* AES-256 over whole blocks, in place; NULL: libcrypto is at least as fast. */
    void (*encrypt)(const kernel_key *key, unsigned char *blocks, size_t size);
    /* `start` is the GHASH state to begin each row with. */
    void (*seal)(const kernel_key *key, const row *rows, size_t count, const unsigned char start[BLOCK]);
    /* Sets `valid`; a row that is not authentic leaves its plaintext untouched. */
    void (*open)(const kernel_key *key, row *rows, size_t count, const unsigned char start[BLOCK]);
} row_kernel;

#if defined(__x86_64__)
extern const row_kernel row_kernel_pclmul;
extern const row_kernel row_kernel_vpclmul;
#elif defined(__aarch64__) && defined(__ORDER_LITTLE_ENDIAN__)
extern const row_kernel row_kernel_pmull;
#endif

#endif
