/* The bare loops that tapeseal is measured against: EVP AES-256-GCM, pread and pwrite, and nothing else.
 *
 * They move the same bytes in the same shape as a tape does (a header of 24 bytes as associated data, ciphertext,
 * tag) with what a good C programmer would do by hand: one context a thread, keyed once; per frame only a new IV;
 * one frame's buffer, reused, so that it stays in the cache. Each function returns 0, or a line number where it failed.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>

enum { HEADER = 24, TAG = 16, PORTION = 2, MAX_FRAME = 1 << 17, MAX_THREADS = 16 };

#define TRY(condition) do { if (!(condition)) return __LINE__; } while (0)

static const unsigned char key[32] = "32 bytes of key that is public..";

static int seal(EVP_CIPHER_CTX *ctx, uint64_t i, const unsigned char *plain, size_t size, unsigned char *frame)
{
    uint64_t number = __builtin_bswap64(i), first = i * size;
    uint32_t count = (uint32_t)size;
    unsigned char nonce[12] = {0};
    int n, last;
    memcpy(nonce + 4, &number, 8);
    memset(frame, 0, HEADER);
    frame[0] = 2;
    memcpy(frame + 4, &count, 4);
    memcpy(frame + 8, &first, 8);
    memcpy(frame + 16, &count, 4);
    TRY(EVP_CipherInit_ex2(ctx, NULL, NULL, nonce, 1, NULL) == 1);
    TRY(EVP_CipherUpdate(ctx, NULL, &n, frame, HEADER) == 1);
    TRY(EVP_CipherUpdate(ctx, frame + HEADER, &n, plain, (int)size) == 1);
    TRY(EVP_CipherFinal_ex(ctx, frame + HEADER + n, &last) == 1);
    TRY(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG, frame + HEADER + size) == 1);
    return 0;
}

static int unseal(EVP_CIPHER_CTX *ctx, uint64_t i, unsigned char *frame, size_t size, unsigned char *plain)
{
    uint64_t number = __builtin_bswap64(i);
    unsigned char nonce[12] = {0};
    int n, last;
    memcpy(nonce + 4, &number, 8);
    TRY(EVP_CipherInit_ex2(ctx, NULL, NULL, nonce, 0, NULL) == 1);
    TRY(EVP_CipherUpdate(ctx, NULL, &n, frame, HEADER) == 1);
    TRY(EVP_CipherUpdate(ctx, plain, &n, frame + HEADER, (int)size) == 1);
    TRY(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG, frame + HEADER + size) == 1);
    TRY(EVP_CipherFinal_ex(ctx, plain + n, &last) == 1);
    return 0;
}

typedef struct job {
    int (*step)(EVP_CIPHER_CTX *, struct job *, uint64_t i, unsigned char *scratch);
    int sealing;
    int fd;
    unsigned char *plain;
    unsigned char *sealed;
    uint64_t frames;
    uint64_t kept;          /* frames in the buffers, which the loop goes over again and again */
    size_t size;            /* plaintext bytes of a frame */
    _Atomic uint64_t next;
    _Atomic int failed;
} job;

static int seal_in_memory(EVP_CIPHER_CTX *ctx, job *j, uint64_t i, unsigned char *scratch)
{
    uint64_t at = i % j->kept;
    (void)scratch;
    return seal(ctx, i, j->plain + at * j->size, j->size, j->sealed + at * (HEADER + j->size + TAG));
}

static int open_in_memory(EVP_CIPHER_CTX *ctx, job *j, uint64_t i, unsigned char *scratch)
{
    uint64_t at = i % j->kept;
    (void)scratch;
    return unseal(ctx, at, j->sealed + at * (HEADER + j->size + TAG), j->size, j->plain + at * j->size);
}

static int seal_and_pwrite(EVP_CIPHER_CTX *ctx, job *j, uint64_t i, unsigned char *scratch)
{
    size_t whole = HEADER + j->size + TAG;
    int code = seal(ctx, i, j->plain + i * j->size, j->size, scratch);
    TRY(code == 0 && pwrite(j->fd, scratch, whole, (off_t)(i * whole)) == (ssize_t)whole);
    return 0;
}

static int pread_and_open(EVP_CIPHER_CTX *ctx, job *j, uint64_t i, unsigned char *scratch)
{
    size_t whole = HEADER + j->size + TAG;
    TRY(pread(j->fd, scratch, whole, (off_t)(i * whole)) == (ssize_t)whole);
    return unseal(ctx, i, scratch, j->size, j->plain + i * j->size);
}

static int loop(EVP_CIPHER_CTX *ctx, job *j)
{
    _Alignas(64) unsigned char scratch[MAX_FRAME];
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    int made = ctx != NULL && cipher != NULL && EVP_CipherInit_ex2(ctx, cipher, key, NULL, j->sealing, NULL) == 1;
    EVP_CIPHER_free(cipher);
    TRY(made);
    for (;;) {
        uint64_t from = atomic_fetch_add(&j->next, PORTION);
        uint64_t to = from + PORTION < j->frames ? from + PORTION : j->frames;
        if (from >= j->frames)
            return 0;
        for (uint64_t i = from; i < to; i++) {
            int code = j->step(ctx, j, i, scratch);
            if (code != 0)
                return code;
        }
    }
}

static void *work(void *argument)
{
    job *j = argument;
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    int code = loop(ctx, j);
    EVP_CIPHER_CTX_free(ctx);
    if (code != 0)
        atomic_store(&j->failed, code);
    return NULL;
}

static int run(job *j, unsigned threads)
{
    pthread_t others[MAX_THREADS];
    TRY(HEADER + j->size + TAG <= MAX_FRAME && threads >= 1 && threads <= MAX_THREADS);
    for (unsigned t = 1; t < threads; t++)
        TRY(pthread_create(&others[t], NULL, work, j) == 0);
    work(j);
    for (unsigned t = 1; t < threads; t++)
        pthread_join(others[t], NULL);
    return atomic_load(&j->failed);
}

/* Frames of `size` bytes from `plain` to `sealed`, or back. The buffers hold `kept` frames: frame i is at i % kept. */
int loop_memory(int sealing, unsigned char *plain, unsigned char *sealed, uint64_t frames, uint64_t kept, size_t size,
                unsigned threads)
{
    job j = {.step = sealing ? seal_in_memory : open_in_memory, .sealing = sealing, .plain = plain, .sealed = sealed,
             .frames = frames, .kept = kept, .size = size};
    return run(&j, threads);
}

/* Frames of `size` bytes from `plain` to the file, or from the file to `plain`. */
int loop_file(int sealing, int fd, unsigned char *plain, uint64_t frames, size_t size, unsigned threads)
{
    job j = {.step = sealing ? seal_and_pwrite : pread_and_open, .sealing = sealing, .fd = fd, .plain = plain,
             .frames = frames, .size = size};
    return run(&j, threads);
}

const char *loop_openssl(void)
{
    return OpenSSL_version(OPENSSL_VERSION);
}
