#include "frames.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#include <openssl/crypto.h>

#include "memory.h"

enum {
    FRAME_TYPE = 2,
    FINAL_FRAME_TYPE = 3,
    MAX_THREADS = 64,
    /* A thread costs some 20 microseconds to start: the time of this many bytes on one core. */
    MIN_BYTES_PER_THREAD = 256 * 1024,
    /* Threads take frames in portions of about this many bytes. */
    PORTION = 128 * 1024,
};

static void put32(unsigned char *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(v >> (8 * i));
}

static void put64(unsigned char *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (unsigned char)(v >> (8 * i));
}

static EVP_CIPHER_CTX *copy_key(const EVP_CIPHER_CTX *key)
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    if (ctx != NULL && EVP_CIPHER_CTX_copy(ctx, key) != 1) {
        EVP_CIPHER_CTX_free(ctx);
        ctx = NULL;
    }
    return ctx;
}

int gcm_seal_with(EVP_CIPHER_CTX *ctx, const unsigned char *nonce, const unsigned char *aad, size_t aad_size,
                     const unsigned char *plain, size_t size, unsigned char *out, unsigned char *tag)
{
    int n = 0, total = 0;
    if (EVP_CipherInit_ex2(ctx, NULL, NULL, nonce, 1, NULL) != 1)
        return ERR_CRYPTO;
    if (aad_size > 0 && EVP_CipherUpdate(ctx, NULL, &n, aad, (int)aad_size) != 1)
        return ERR_CRYPTO;
    if (size > 0 && EVP_CipherUpdate(ctx, out, &total, plain, (int)size) != 1)
        return ERR_CRYPTO;
    /* GCM is a stream: Final writes nothing, and `out + total` is never past the ciphertext. */
    if (EVP_CipherFinal_ex(ctx, out + total, &n) != 1 || (size_t)(total + n) != size)
        return ERR_CRYPTO;
    if (EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG_SIZE, tag) != 1)
        return ERR_CRYPTO;
    return OK;
}

int gcm_open_with(EVP_CIPHER_CTX *ctx, const unsigned char *nonce, const unsigned char *aad, size_t aad_size,
                     const unsigned char *sealed, size_t size, const unsigned char *tag, unsigned char *out)
{
    int n = 0, total = 0;
    unsigned char expected[TAG_SIZE];
    memcpy(expected, tag, TAG_SIZE);
    if (EVP_CipherInit_ex2(ctx, NULL, NULL, nonce, 0, NULL) != 1)
        return ERR_CRYPTO;
    if (aad_size > 0 && EVP_CipherUpdate(ctx, NULL, &n, aad, (int)aad_size) != 1)
        return ERR_CRYPTO;
    int code = OK;
    if (size > 0 && EVP_CipherUpdate(ctx, out, &total, sealed, (int)size) != 1)
        code = ERR_CRYPTO;
    else if (EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG_SIZE, expected) != 1)
        code = ERR_CRYPTO;
    else if (EVP_CipherFinal_ex(ctx, out + total, &n) != 1 || (size_t)(total + n) != size)
        code = ERR_TAG;
    if (code != OK && size > 0)
        OPENSSL_cleanse(out, size);
    return code;
}

int gcm_seal(const EVP_CIPHER_CTX *key, const unsigned char *nonce, const unsigned char *aad, size_t aad_size,
             const unsigned char *plain, size_t size, unsigned char *sealed)
{
    EVP_CIPHER_CTX *ctx = copy_key(key);
    if (ctx == NULL)
        return ERR_CRYPTO;
    int code = gcm_seal_with(ctx, nonce, aad, aad_size, plain, size, sealed, sealed + size);
    EVP_CIPHER_CTX_free(ctx);
    wipe_registers();
    return code;
}

int gcm_open(const EVP_CIPHER_CTX *key, const unsigned char *nonce, const unsigned char *aad, size_t aad_size,
             const unsigned char *sealed, size_t size, unsigned char *plain)
{
    EVP_CIPHER_CTX *ctx = copy_key(key);
    if (ctx == NULL)
        return ERR_CRYPTO;
    int code = gcm_open_with(ctx, nonce, aad, aad_size, sealed, size, sealed + size, plain);
    EVP_CIPHER_CTX_free(ctx);
    wipe_registers();
    return code;
}

uint64_t frame_run_frames(const frame_run *run)
{
    uint64_t frames = (run->count + run->frame_items - 1) / run->frame_items;
    return frames == 0 && run->final ? 1 : frames;
}

typedef struct {
    const EVP_CIPHER_CTX *key;
    const frame_run *run;
    uint64_t frames;
    uint64_t portion;          /* frames a thread takes at a time */
    int opening;
    _Atomic uint64_t next;
    _Atomic uint64_t bad;      /* first frame that failed to open; UINT64_MAX: none */
    _Atomic int crypto_failed;
} frame_job;

static int do_frame(EVP_CIPHER_CTX *ctx, const frame_job *job, uint64_t i)
{
    const frame_run *run = job->run;
    size_t full = (size_t)run->frame_items * run->item_size;
    uint64_t before = i * run->frame_items;
    uint64_t left = run->count - before;
    uint32_t items = left < run->frame_items ? (uint32_t)left : run->frame_items;
    size_t size = (size_t)items * run->item_size;
    unsigned char *sealed = run->sealed + i * (full + FRAME_HEADER_SIZE + TAG_SIZE);
    unsigned char *plain = run->plain + i * run->plain_step;

    unsigned char header[FRAME_HEADER_SIZE] = {0};
    header[0] = run->final && i + 1 == job->frames ? FINAL_FRAME_TYPE : FRAME_TYPE;
    put32(header + 4, items);
    put64(header + 8, run->first + before);
    put32(header + 16, (uint32_t)size);

    unsigned char nonce[NONCE_SIZE] = {0};
    uint64_t number = run->index + i;
    for (int b = 0; b < 8; b++)
        nonce[4 + b] = (unsigned char)(number >> (56 - 8 * b));

    unsigned char *body = sealed + FRAME_HEADER_SIZE;
    if (!job->opening) {
        int code = gcm_seal_with(ctx, nonce, header, sizeof header, plain, size, body, body + size);
        if (code != OK) {
            OPENSSL_cleanse(body, size);
            return code;
        }
        memcpy(sealed, header, sizeof header);
        return OK;
    }
    if (memcmp(sealed, header, sizeof header) != 0) {
        /* In place, the plaintext's bytes are the ciphertext's: nothing was released, wiping them is harmless. */
        OPENSSL_cleanse(plain, size);
        return ERR_TAG;
    }
    return gcm_open_with(ctx, nonce, header, sizeof header, body, size, body + size, plain);
}

static void *work(void *argument)
{
    frame_job *job = argument;
    EVP_CIPHER_CTX *ctx = copy_key(job->key);
    if (ctx == NULL) {
        atomic_store(&job->crypto_failed, 1);
        return NULL;
    }
    while (!atomic_load(&job->crypto_failed)) {
        uint64_t from = atomic_fetch_add(&job->next, job->portion);
        if (from >= job->frames)
            break;
        uint64_t to = job->frames - from < job->portion ? job->frames : from + job->portion;
        for (uint64_t i = from; i < to; i++) {
            int code = do_frame(ctx, job, i);
            if (code == ERR_CRYPTO) {
                atomic_store(&job->crypto_failed, 1);
                break;
            }
            if (code == ERR_TAG) {
                uint64_t seen = atomic_load(&job->bad);
                while (i < seen && !atomic_compare_exchange_weak(&job->bad, &seen, i))
                    ;
            }
        }
    }
    EVP_CIPHER_CTX_free(ctx);
    wipe_registers();
    return NULL;
}

void run_in_threads(void *(*work)(void *), void *argument, unsigned threads)
{
    pthread_t started[MAX_THREADS];
    unsigned running = 0;
    if (threads > MAX_THREADS)
        threads = MAX_THREADS;
    if (threads > 1) {
        /* Signals are for the interpreter's threads. */
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        /* Too few threads is slower, not wrong: this thread works as well. */
        while (running < threads - 1 && pthread_create(&started[running], NULL, work, argument) == 0)
            running++;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    work(argument);
    for (unsigned i = 0; i < running; i++)
        pthread_join(started[i], NULL);
}

static int run_job(frame_job *job, unsigned threads)
{
    const frame_run *run = job->run;
    uint64_t bytes = run->count * run->item_size;
    uint64_t full = (uint64_t)run->frame_items * run->item_size;
    job->frames = frame_run_frames(run);
    job->portion = full >= PORTION ? 1 : PORTION / full;
    atomic_init(&job->next, 0);
    atomic_init(&job->bad, UINT64_MAX);
    atomic_init(&job->crypto_failed, 0);

    if (threads > bytes / MIN_BYTES_PER_THREAD)
        threads = (unsigned)(bytes / MIN_BYTES_PER_THREAD);
    run_in_threads(work, job, threads);
    if (atomic_load(&job->crypto_failed))
        return ERR_CRYPTO;
    return atomic_load(&job->bad) == UINT64_MAX ? OK : ERR_TAG;
}

int frames_seal(const EVP_CIPHER_CTX *key, const frame_run *run, unsigned threads)
{
    frame_job job = {.key = key, .run = run, .opening = 0};
    return run_job(&job, threads);
}

int frames_open(const EVP_CIPHER_CTX *key, const frame_run *run, unsigned threads, uint64_t *bad)
{
    frame_job job = {.key = key, .run = run, .opening = 1};
    int code = run_job(&job, threads);
    *bad = atomic_load(&job.bad);
    return code;
}
