#include "crypto_memory.h"

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <openssl/crypto.h>

#include "memory.h"

/* Blocks of 2^MIN_SHIFT to 2^MAX_SHIFT bytes are cut from arenas and kept in a list of free ones for each size; larger
   ones, which libcrypto hardly ever asks for, have a mapping each. Arenas stay: libcrypto's need is some 500 KiB. */
enum {
    MIN_SHIFT = 6,
    MAX_SHIFT = 16,
    ARENA_SIZE = 512 * 1024,
    /* Blocks start at multiples of 64, and so does the data of those that hold contexts: vector loads like it. */
    SMALL_LEAD = 16,
    LARGE_LEAD = 64,
    LARGE_SHIFT = 9,
};

/* Stands in the 16 bytes before the data. */
typedef struct {
    uint64_t size;             /* as it was asked for */
    uint32_t shift;            /* of the block; 0: a mapping of its own */
    uint32_t unused;
} block_head;

typedef struct free_block {
    struct free_block *next;
} free_block;

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static free_block *free_blocks[MAX_SHIFT + 1];
static unsigned char *fresh;
static size_t fresh_left;

static size_t lead(uint32_t shift)
{
    return shift != 0 && shift < LARGE_SHIFT ? SMALL_LEAD : LARGE_LEAD;
}

static block_head *head_of(void *data)
{
    return (block_head *)(void *)((unsigned char *)data - sizeof(block_head));
}

static unsigned char *take_block(uint32_t shift)
{
    free_block *block = free_blocks[shift];
    if (block != NULL) {
        free_blocks[shift] = block->next;
        return (unsigned char *)block;
    }
    size_t size = (size_t)1 << shift;
    if (fresh_left < size) {
        secret_pages arena;
        if (secret_pages_map_shared(&arena, ARENA_SIZE) != 0)
            return NULL;
        fresh = arena.data;
        fresh_left = ARENA_SIZE;
    }
    unsigned char *start = fresh;
    fresh += size;
    fresh_left -= size;
    return start;
}

static void *protected_malloc(size_t size, const char *file, int line)
{
    (void)file;
    (void)line;
    if (size == 0 || size > SIZE_MAX / 2)
        return NULL;
    uint32_t shift = MIN_SHIFT;
    while (shift <= MAX_SHIFT && ((size_t)1 << shift) < size + lead(shift))
        shift++;
    unsigned char *block;
    if (shift > MAX_SHIFT) {
        secret_pages pages;
        shift = 0;
        if (secret_pages_map_shared(&pages, size + LARGE_LEAD) != 0)
            return NULL;
        block = pages.data;
    } else {
        pthread_mutex_lock(&guard);
        block = take_block(shift);
        pthread_mutex_unlock(&guard);
        if (block == NULL)
            return NULL;
    }
    void *data = block + lead(shift);
    *head_of(data) = (block_head){.size = size, .shift = shift};
    return data;
}

static void protected_free(void *data, const char *file, int line)
{
    (void)file;
    (void)line;
    if (data == NULL)
        return;
    block_head head = *head_of(data);
    OPENSSL_cleanse(data, head.size);
    unsigned char *block = (unsigned char *)data - lead(head.shift);
    if (head.shift == 0) {
        secret_pages_unmap_shared(block, head.size + LARGE_LEAD);
        return;
    }
    pthread_mutex_lock(&guard);
    free_block *freed = (free_block *)(void *)block;
    freed->next = free_blocks[head.shift];
    free_blocks[head.shift] = freed;
    pthread_mutex_unlock(&guard);
}

static void *protected_realloc(void *data, size_t size, const char *file, int line)
{
    if (data == NULL)
        return protected_malloc(size, file, line);
    if (size == 0) {
        protected_free(data, file, line);
        return NULL;
    }
    size_t had = head_of(data)->size;
    if (size <= had) {
        OPENSSL_cleanse((unsigned char *)data + size, had - size);
        head_of(data)->size = size;
        return data;
    }
    void *larger = protected_malloc(size, file, line);
    if (larger == NULL)
        return NULL;
    memcpy(larger, data, had);
    protected_free(data, file, line);
    return larger;
}

static void lock_guard(void)
{
    pthread_mutex_lock(&guard);
}

static void unlock_guard(void)
{
    pthread_mutex_unlock(&guard);
}

int crypto_memory_install(void)
{
#if !defined(TAPESEAL_OWN_LIBCRYPTO) || defined(__SANITIZE_ADDRESS__)
    /* The system's libcrypto is others' too; and a sanitizer watches malloc's memory alone. */
    return 0;
#else
    if (CRYPTO_set_mem_functions(protected_malloc, protected_realloc, protected_free) != 1)
        return 0;
    /* A fork while another thread holds the guard would leave it locked in the child for ever. */
    return pthread_atfork(lock_guard, unlock_guard, unlock_guard) == 0;
#endif
}
