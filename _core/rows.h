/* AES-256-GCM over many short rows in one call: each row is nonce, ciphertext, tag. */

#ifndef TAPESEAL_ROWS_H
#define TAPESEAL_ROWS_H

#include <stddef.h>
#include <stdint.h>

#include "frames.h"

enum {
    ROW_OVERHEAD = NONCE_SIZE + TAG_SIZE,
};

enum {
    ERR_OFFSETS = -3,          /* offsets that run backwards, or leave their data */
    ERR_SELF_TEST = -4,        /* the kernel gave a wrong known answer: nothing was done */
    ERR_SIZE = -5,             /* a row, or its associated data, of 2^31 bytes and more; offsets too small */
};

/* Where one thing of each row lies: at data + i * step, `size` bytes; or from the i-th to the next offset. */
typedef struct {
    unsigned char *data;
    size_t size;               /* bytes of each; with offsets: of all the data */
    ptrdiff_t step;            /* 0: one for all rows */
    const void *offsets;       /* count + 1 integers, or NULL */
    int offset_size;           /* their bytes: 4 or 8 */
} row_column;

typedef struct {
    row_column plain;
    row_column sealed;
    row_column aad;
    uint64_t count;
    uint64_t counter;          /* sealing: the first row's */
    unsigned char *valid;      /* opening: a byte a row, 1 where it is authentic; or NULL */
    int any_nonce;             /* for tests: the nonces to seal with stand in the rows, and any opens */
} row_batch;

typedef struct row_key row_key;

/* The i-th kernel this machine can run, the fastest first; NULL behind the last, which is "evp". */
const char *row_kernel_name(unsigned i);

/* `secret` is KEY_SIZE bytes. OK, ERR_CRYPTO, or ERR_SELF_TEST; an unknown kernel is ERR_CRYPTO. */
int row_key_new(row_key **key, const unsigned char *secret, const char *kernel);

/* Wipes and frees; NULL is harmless. No call may be under way. */
void row_key_free(row_key *key);

/* plain -> sealed. OK, ERR_CRYPTO, ERR_OFFSETS, or ERR_SIZE. */
int rows_seal(row_key *key, const row_batch *batch, unsigned threads);

/* sealed -> plain. ERR_TAG: `*bad` is the first row that is not authentic. Nothing of such a row is in plain but
   zeros. */
int rows_open(row_key *key, const row_batch *batch, unsigned threads, uint64_t *bad);

/* Writes the count + 1 offsets, of 4 or 8 bytes, of rows that are `more` bytes longer (or -more shorter, never below
   0) than those of `column`. ERR_OFFSETS: the column's are out of order or range. ERR_SIZE: the new
   ones do not fit. */
int row_offsets(const row_column *column, uint64_t count, int more, void *offsets, uint64_t *total);

#endif
