// Code of streams that a library built by GCC 11 or newer would ask libstdc++ for, which older systems lack. torch's
// headers call it in C++20; here it becomes part of the library. What else is newer than these systems, torch's own
// libraries have, which are made for them; but these functions are not in every torch.
#include <sstream>

#if defined(__GLIBCXX__) && _GLIBCXX_USE_CXX11_ABI
template std::string std::stringbuf::str() const&;
template std::string std::stringbuf::str() &&;
#endif
