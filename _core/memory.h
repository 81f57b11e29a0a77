/* Pages for secrets, and the sentinel by which a process notices that it is a fork. */

#ifndef TAPESEAL_MEMORY_H
#define TAPESEAL_MEMORY_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    unsigned char *mapping;    /* guard page, data pages, guard page; NULL when unmapped */
    size_t mapping_size;
    unsigned char *data;       /* ends (rounded to 16) at the upper guard page */
    size_t size;
    int locked;                /* 0 where RLIMIT_MEMLOCK forbade it */
} secret_pages;

/* Maps zeroed pages for `size` bytes (1 to 2^30). Returns 0, or -1 with errno set. */
int secret_pages_map(secret_pages *pages, size_t size);

/* Wipes the data; the pages stay mapped. */
void secret_pages_wipe(secret_pages *pages);

/* Wipes and unmaps; harmless on pages that are not mapped. */
void secret_pages_unmap(secret_pages *pages);

/* The same for memory that a forked child goes on with. The data then starts at a page. */
int secret_pages_map_shared(secret_pages *pages, size_t size);
void secret_pages_unmap_shared(unsigned char *data, size_t size);

/* Leaves zeros in the vector registers that a call may use. What the last call left there, round keys or plaintext, the
   dynamic linker and signals write to the stack, a new thread inherits and a core dump shows: so each thread does this
   after it has used a key. */
void wipe_registers(void);

/* Copies bytes and leaves none of them in a vector register. */
void secret_copy(void *to, const void *from, size_t size);

/* A number of this process, never 0: a forked child sees another one than its parent. 0: no memory or randomness. */
uint64_t process_epoch(void);

#endif
