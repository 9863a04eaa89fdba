// The oldest versions of symbols of glibc and libstdc++ that will do, so that a library built on a new Linux loads on one
// of 2018 (manylinux_2_28, as torch's own). Whoever uses such a symbol includes this; make check-wheel finds who does not.
#pragma once

#if defined(__linux__) && !defined(__CUDA_ARCH__)
#include <new>
#include <sstream>
#include <string>

#if defined(__GLIBC__) && defined(__GLIBCXX__)

// glibc 2.34 gave dlsym a second version when it moved to libc.so, and GCC 12 gave one to a wait() that is noexcept.
#if defined(__x86_64__)
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
#elif defined(__aarch64__)
__asm__(".symver dlsym, dlsym@GLIBC_2.17");
#endif
__asm__(
    ".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE, "
    "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");

// Since glibc 2.32 std::shared_ptr reads this variable: may it count without atomic additions? Our own says no.
extern "C" {
extern char __libc_single_threaded __attribute__((visibility("hidden")));
__attribute__((weak)) char __libc_single_threaded = 0;
}

// Functions of newer libstdc++ that torch's headers call: the streams of its messages, and new[] of an absurd size.
// They are made of functions that every libstdc++ has.
template std::basic_stringstream<char>::basic_stringstream();
template std::basic_ostringstream<char>::basic_ostringstream();
template std::string std::basic_stringbuf<char>::str() const&;
template std::string std::basic_stringbuf<char>::str() &&;
namespace std {
__attribute__((weak)) void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std

#endif
#endif
