// A table or code that scrolls can be scrolled by keyboard, which needs the focus.
const scrollable = () => {
  for (const part of document.querySelectorAll(".md-typeset__scrollwrap, pre > code")) {
    const scrolls = part.scrollWidth > part.clientWidth;
    if (scrolls) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  }
};
addEventListener("load", scrollable);
addEventListener("resize", scrollable);
